"""Raw input -> TokenSequence: one file a modality, each with its Preprocess."""

from mmzoo.registry import Row

TABLE = {
    "image": Row("mmzoo.modalities.image:ImageAdapter", "patches through an hMLP or single-convolution stem"),
    "timm": Row("mmzoo.modalities.timm_backbone:TimmAdapter", "tokens or feature map of any timm backbone"),
    "open_clip_image": Row(
        "mmzoo.modalities.open_clip_image:OpenClipImageAdapter", "patches or embedding of an open_clip tower"
    ),
    "open_clip_text": Row(
        "mmzoo.modalities.open_clip_text:OpenClipTextAdapter", "tokens or embedding of an open_clip tower"
    ),
    "audio": Row(
        "mmzoo.modalities.audio:WaveformAdapter", "raw waveform through strided convolutions (ONE-PEACE)"
    ),
    "mel": Row("mmzoo.modalities.mel:MelAdapter", "log-mel spectrogram patches (torchaudio)"),
    "text": Row(
        "mmzoo.modalities.text:TextAdapter", "token embedding with a clip_bpe, bytes or gpt2_bpe tokenizer"
    ),
    "fmri": Row("mmzoo.modalities.fmri:FmriAdapter", "per-subject voxels into shared tokens (STTM)"),
    "skeleton": Row("mmzoo.modalities.skeleton:SkeletonAdapter", "spatiotemporal window tokens (ISTA-Net)"),
}

TOKENIZERS = {
    "clip_bpe": Row("mmzoo.modalities.tokenizers:ClipBpe", "open_clip's byte-level BPE, 49,408 entries"),
    "bytes": Row("mmzoo.modalities.tokenizers:Bytes", "UTF-8 bytes, 259 entries"),
    "gpt2_bpe": Row("mmzoo.modalities.tokenizers:Gpt2Bpe", "GPT-2 byte BPE from given tables, fairseq ids"),
}
