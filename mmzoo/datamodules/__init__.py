"""Data sets by format; each yields Batch."""

from mmzoo.registry import Row

TABLE = {
    "five_senses": Row(
        "mmzoo.datamodules.five_senses:FiveSenses", "simulated events seen by all five modalities"
    ),
    "indoor": Row(
        "mmzoo.datamodules.indoor:Indoor", "ray-cast rooms with depth, normals, boundaries, classes, people"
    ),
    "driving": Row(
        "mmzoo.datamodules.driving:Driving",
        "simulated streets: camera and lidar views, boxes, map, occupancy",
    ),
    "nuscenes": Row(
        "mmzoo.datamodules.nuscenes.data:NuScenes",
        "nuScenes folders: lidar and cameras from above; boxes, map, occupancy",
    ),
    "nyud": Row("mmzoo.datamodules.nyud:Nyud", "NYUD-v2 folders: classes, normals, boundaries, depth"),
    "pascal_context": Row(
        "mmzoo.datamodules.pascal_context:PascalContext",
        "PASCAL-Context folders: classes, human parts, saliency, normals, boundaries",
    ),
    "folder": Row(
        "mmzoo.datamodules.folder:Folder", "files of any modality in class folders or tars, labels from names"
    ),
    "manifest": Row("mmzoo.datamodules.manifest:Manifest", "CSV or JSONL with a column a modality and label"),
    "bids": Row("mmzoo.datamodules.bids:Bids", "fMRI runs (NIfTI + events.tsv), BIDS-like"),
    "skeletons": Row(
        "mmzoo.datamodules.skeletons:Skeletons", "skeleton .npz, pyskl pickles, NTU .skeleton text"
    ),
    "webdataset": Row("mmzoo.datamodules.shards:Shards", "WebDataset shards of any mixture of modalities"),
    "mixture": Row("mmzoo.datamodules.mixture:Mixture", "several data sets sampled together"),
}
