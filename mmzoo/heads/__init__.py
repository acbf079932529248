"""TokenSequence -> prediction."""

from mmzoo.registry import Row

TABLE = {
    "contrastive": Row(
        "mmzoo.heads.contrastive:ContrastiveHead", "pooled, projected, L2-normalised, with temperature"
    ),
    "linear": Row("mmzoo.heads.classifier:LinearHead", "pooled -> class logits"),
    "mlp": Row("mmzoo.heads.classifier:MlpHead", "pooled -> hidden layer -> class logits"),
    "dense": Row("mmzoo.heads.dense:DenseHead", "a decoder's feature map -> a value or logits a pixel"),
    "multilabel_mlp": Row(
        "mmzoo.heads.classifier:MultiLabelMlpHead", "pooled -> hidden layer -> one independent logit a label"
    ),
    "multilabel": Row("mmzoo.heads.classifier:MultiLabelHead", "pooled -> one independent logit a label"),
}
