"""Images per second into training batches, against torchvision's ImageFolder and DataLoader on the same
files.

Run: python benchmarks/data_loading.py [--rounds 9] [--threads 1] [--images 512] [--quick] [--json]

cifar: 32 x 32 JPEGs (the real ones where ../shared/data/cifar10 is there, else noise), padded random crop
and flip, batches of 128. photos: synthetic 500 x 375 JPEGs of quality 90 with the spectrum of photographs,
random resized crop to 224 and flip, batches of 64. Both end in normalised float32 batches. Baseline:
ImageFolder, transforms v1 (Pillow), what most training scripts use; the second row is torchvision's own
fast path (decode_image and transforms v2 on uint8). Ours reads the same files from a folder, from one tar,
and with decoded files kept in memory. What evaluation gives is compared with torchvision's before anything
is timed. `workers`: the photos again with two worker processes; read its wall time.
"""

from __future__ import annotations

import io
import pathlib
import tarfile
import tempfile
from collections.abc import Callable, Iterable

import numpy as np
import torch
from harness import Result, compare, finish, machine, parser
from PIL import Image
from torchvision import datasets
from torchvision import io as tv_io
from torchvision import transforms as v1
from torchvision.transforms import v2

from mmzoo.datamodules.folder import Folder
from mmzoo.datamodules.loader import LoaderConfig
from mmzoo.datamodules.records import Cache
from mmzoo.datamodules.split import SplitConfig
from mmzoo.modalities.image_augment import ImageAugment
from mmzoo.modalities.image_preprocess import ImagePreprocess, Interpolation

CIFAR = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10" / "val.tar"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Parse the arguments, write the files, run, print."""
    options = parser(__doc__ or "")
    options.add_argument(
        "--images", type=int, default=512, help="photos an epoch (CIFAR: four times as many)"
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    images, rounds = (64, 3) if args.quick else (args.images, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        real = write_cifar(root / "cifar", 4 * images)
        write_photos(root / "photos", images)
        for name in ("cifar", "photos"):
            check(root / name)
            pack(root / name)
        sections = {
            f"cifar ({'real' if real else 'noise'}, {4 * images} images)": timed(root / "cifar", 128, rounds),
            f"photos ({images} images)": timed(root / "photos", 64, rounds),
            f"workers (2, {images} photos)": timed(root / "photos", 64, rounds, workers=2),
        }
    finish(sections, machine(args.threads), as_object=args.json)


def timed(root: pathlib.Path, batch: int, rounds: int, workers: int = 0) -> list[Result]:
    """Time one epoch of each reader."""
    small = root.name == "cifar"
    epochs: dict[str, Callable[[], Iterable[int]]] = {
        "ImageFolder, v1": torchvision_epoch(root, batch, workers, old_transforms(small=small)),
        "ImageFolder, decode_image + v2": torchvision_epoch(
            root, batch, workers, new_transforms(small=small), tv_io.decode_image
        ),
        "mmzoo folder": own_epoch(root, batch, workers, small=small),
        "mmzoo tar": own_epoch(root.with_suffix(".tar"), batch, workers, small=small),
    }
    if not workers:
        epochs["mmzoo tar, decoded in memory"] = own_epoch(
            root.with_suffix(".tar"), batch, workers, small=small, cache=Cache.DECODED
        )
    count = sum(1 for _ in root.rglob("*.jpg"))
    results = compare({name: counted(run, count) for name, run in epochs.items()}, rounds=rounds)
    for result in results:
        result.extra["images/s (wall)"] = count / (1e-3 * result.wall.median_ms)
    return results


def counted(epoch: Callable[[], Iterable[int]], count: int) -> Callable[[], None]:
    """Return a run of one epoch that makes sure that every image came."""

    def run() -> None:
        seen = sum(epoch())
        if seen != count:
            raise SystemExit(f"{seen} of {count} images came")

    return run


def torchvision_epoch(
    root: pathlib.Path,
    batch: int,
    workers: int,
    transform: Callable[..., torch.Tensor],
    loader: object = None,
) -> Callable[[], Iterable[int]]:
    """Return an epoch of torchvision's loader."""
    chosen = {} if loader is None else {"loader": loader}
    data = datasets.ImageFolder(str(root), transform, **chosen)
    made = torch.utils.data.DataLoader(
        data, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: (len(images) for images, _ in made)


def own_epoch(
    root: pathlib.Path, batch: int, workers: int, *, small: bool, cache: Cache = Cache.NONE
) -> Callable[[], Iterable[int]]:
    """Return an epoch of our loader."""
    config = Folder.Config(
        root=str(root),
        split=SplitConfig(val_share=0.0, test_share=0.0),
        cache=cache,
        loader=LoaderConfig(batch_size=batch, num_workers=workers, drop_last=False),
    )
    made = Folder(config, {"image": preprocess(small=small)}).loader("train")
    return lambda: (len(batch) for batch in made)


def preprocess(*, small: bool) -> ImagePreprocess:
    """Return ours: the same steps as `old_transforms`."""
    augment = (
        ImageAugment(pad_crop=4, flip_prob=0.5)
        if small
        else ImageAugment(crop_scale=(0.08, 1.0), flip_prob=0.5)
    )
    size = (32, 32) if small else (224, 224)
    how = Interpolation.BILINEAR
    return ImagePreprocess.Config(size=size, interpolation=how, mean=MEAN, std=STD, augment=augment).build()


def old_transforms(*, small: bool) -> Callable[..., torch.Tensor]:
    """Return the usual steps on Pillow images."""
    crop = v1.RandomCrop(32, padding=4) if small else v1.RandomResizedCrop(224)
    return v1.Compose([crop, v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)])


def new_transforms(*, small: bool) -> Callable[..., torch.Tensor]:
    """Return the same steps on uint8 tensors."""
    crop = v2.RandomCrop(32, padding=4) if small else v2.RandomResizedCrop(224, antialias=True)
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *last])


def check(root: pathlib.Path) -> None:
    """Make sure that without chance both read the same: exact decoding, resizing to within two levels."""
    path = next(root.rglob("*.jpg"))
    small = root.name == "cifar"
    size = (32, 32) if small else (224, 224)
    steps = v1.Compose([v1.Resize(size), v1.ToTensor(), v1.Normalize(MEAN, STD)])
    theirs = steps(Image.open(path).convert("RGB"))
    ours = preprocess(small=small)(preprocess(small=small).decode(path.read_bytes(), path.name)).values
    levels = ((ours - theirs) * torch.tensor(STD)[:, None, None] * 255).abs().max()
    if levels > 2.01:
        raise SystemExit(f"{path.name}: differs from torchvision's by {levels:.1f} levels")


def write_cifar(root: pathlib.Path, count: int) -> bool:
    """Write 32 x 32 JPEGs in class folders; say whether they are real."""
    rng = np.random.default_rng(0)
    if CIFAR.is_file():
        with tarfile.open(CIFAR) as tar:
            members = [m for m in tar.getmembers() if m.isreg()]
            for i in rng.permutation(len(members))[:count]:
                tar.extract(members[i], root, filter="data")
        return True
    for i in range(count):
        write(root / f"class{i % 10}" / f"{i:04d}.jpg", natural(rng, 32, 32))
    return False


def write_photos(root: pathlib.Path, count: int) -> None:
    """Write 500 x 375 JPEGs of quality 90."""
    rng = np.random.default_rng(1)
    for i in range(count):
        write(root / f"class{i % 4}" / f"{i:04d}.jpg", natural(rng, 375, 500))


def write(path: pathlib.Path, pixels: np.ndarray) -> None:
    """Write one JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=90)


def natural(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Make a colour picture whose amplitude falls with frequency, as photographs' does."""
    rows, cols = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(rows, cols), 1 / width) ** 1.4
    noise = rng.normal(size=(3, height, width))
    field = np.fft.irfft2(np.fft.rfft2(noise) * fall, s=(height, width))
    field = field / field.std(axis=(1, 2), keepdims=True) * 50 + 120 + rng.normal(size=(3, height, width)) * 2
    return field.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def pack(root: pathlib.Path) -> None:
    """Write a folder's files into a tar beside it."""
    with tarfile.open(root.with_suffix(".tar"), "w") as tar:
        for path in sorted(root.rglob("*.jpg")):
            info = tarfile.TarInfo(path.relative_to(root).as_posix())
            data = path.read_bytes()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main()
