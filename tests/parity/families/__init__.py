"""One module a family of golden files: it builds our model from the reference's weights and yields every output."""
