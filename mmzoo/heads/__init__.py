"""TokenSequence -> prediction."""

from mmzoo.registry import Row

TABLE = {
    "contrastive": Row(
        "mmzoo.heads.contrastive:ContrastiveHead", "pooled, projected, L2-normalised, with temperature"
    ),
    "denoise": Row(
        "mmzoo.models.denoising:DenoisingHead", "hides tokens and fills them in with a decoder (ONE-PEACE)"
    ),
    "projection": Row(
        "mmzoo.heads.projection:ProjectionHead", "pooled -> a teacher's width, left out of the export"
    ),
    "linear": Row("mmzoo.heads.classifier:LinearHead", "pooled -> class logits"),
    "mlp": Row("mmzoo.heads.classifier:MlpHead", "pooled -> hidden layer -> class logits"),
    "dense": Row("mmzoo.heads.dense:DenseHead", "a decoder's feature map -> a value or logits a pixel"),
    "upsample": Row("mmzoo.heads.upsample:UpsampleHead", "dense, enlarged step by step (SETR-PUP, M3ViT)"),
    "pair_mlp": Row(
        "mmzoo.heads.pair:PairMlpHead", "two passes, pooled alike -> hidden layer -> class logits"
    ),
    "multilabel_mlp": Row(
        "mmzoo.heads.classifier:MultiLabelMlpHead", "pooled -> hidden layer -> one independent logit a label"
    ),
    "choice_mlp": Row(
        "mmzoo.heads.choice:ChoiceMlpHead", "pooled -> hidden layer -> one score for each answer of a sample"
    ),
    "regression": Row("mmzoo.heads.numbers:RegressionHead", "pooled -> numbers"),
    "regression_mlp": Row("mmzoo.heads.numbers:RegressionMlpHead", "pooled -> hidden layer -> numbers"),
    "box": Row("mmzoo.heads.numbers:BoxHead", "pooled -> hidden layer -> a box in the picture (ONE-PEACE)"),
    "multilabel": Row("mmzoo.heads.classifier:MultiLabelHead", "pooled -> one independent logit a label"),
}
