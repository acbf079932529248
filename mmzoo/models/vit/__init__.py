"""Plain vision transformers as timm publishes them."""
