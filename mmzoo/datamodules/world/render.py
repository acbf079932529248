"""From events to the arrays of the senses that are worth keeping (captions are made on the fly)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from mmzoo.datamodules.world import actions, body, brain, scene, sound
from mmzoo.datamodules.world.events import (
    CLIP_S,
    Event,
    WorldConfig,
    calibration_events,
    make_events,
)

CHUNK = 64
"""Events rendered together. Chunks are the same whoever renders them, so sums come out the same to the
bit."""

Arrays = dict[str, Shaped[np.ndarray, "n ..."]]


class Renderer:
    """Renders events; the subjects' voxels are drawn and standardised once, at construction."""

    def __init__(self, config: WorldConfig, subjects: Sequence[brain.Subject] = ()) -> None:
        """Draw the world's subjects, unless others are given, and measure their responses to the calibration
        events."""
        self.config = config
        events = calibration_events(config)
        chunks = [events[at : at + CHUNK] for at in range(0, len(events), CHUNK)]
        maps = np.concatenate([brain.energies(self._pictures(c, body.pose(c).joints)) for c in chunks])
        code = brain.semantic_code(events, config.world_seed)
        own = [brain.make_subject(n, config.world_seed, config.ncsnr) for n in brain.SUBJECTS]
        self.responders = [brain.Responder(subject, maps, code) for subject in subjects or own]

    def __call__(self, events: Sequence[Event]) -> Arrays:
        """Render a chunk of events."""
        joints = body.pose(events).joints
        pictures = self._pictures(events, joints)
        return {
            "image": pictures,
            "audio": np.stack([sound.hear(e, self.config.sample_rate_hz) for e in events]),
            "skeleton": np.stack([body.record(e, j) for e, j in zip(events, joints, strict=True)]),
            "fmri": self._scans(events, pictures),
        }

    def signals(self, events: Sequence[Event]) -> list[Float[np.ndarray, "n v"]]:
        """Return each subject's noiseless responses: what a perfect encoding model predicts."""
        maps = brain.energies(self._pictures(events, body.pose(events).joints))
        code = brain.semantic_code(events, self.config.world_seed)
        return [responder.signal(maps, code) for responder in self.responders]

    def _pictures(
        self, events: Sequence[Event], joints: Float[np.ndarray, "n t 2 25 3"]
    ) -> Shaped[np.ndarray, "n h w 3"]:
        size = self.config.image_size
        return np.stack([scene.draw(e, j, size) for e, j in zip(events, joints, strict=True)])

    def _scans(
        self, events: Sequence[Event], pictures: Shaped[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, "n r v"]:
        maps = brain.energies(pictures)
        code = brain.semantic_code(events, self.config.world_seed)
        noise = np.stack([brain.trial_noise(e, self.config.num_repeats) for e in events])
        parts: list[Float[np.ndarray, "n r _"]] = []
        for responder, columns in zip(self.responders, voxel_slices().values(), strict=True):
            parts.append(responder.scans(responder.signal(maps, code), noise[..., columns]))
        return np.concatenate(parts, axis=-1)


def shapes(config: WorldConfig, split: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of each array of a split."""
    n, size = config.count(split), config.image_size
    return {
        "image": ((n, size, size, 3), "uint8"),
        "audio": ((n, round(CLIP_S * config.sample_rate_hz)), "int16"),
        "skeleton": ((n, 3, actions.NUM_FRAMES, actions.NUM_JOINTS, 2), "float16"),
        "fmri": ((n, config.num_repeats, sum(brain.SUBJECTS.values())), "float16"),
    }


def chunks(config: WorldConfig, split: str) -> Iterator[tuple[int, list[Event]]]:
    """Yield (first row, events) of every chunk of a split."""
    events = make_events(config, split)
    for at in range(0, len(events), CHUNK):
        yield at, events[at : at + CHUNK]


def voxel_slices() -> dict[str, slice]:
    """Return the columns of each subject in the fmri array."""
    ends = np.cumsum(list(brain.SUBJECTS.values())).tolist()
    return {
        name: slice(end - brain.SUBJECTS[name], end) for name, end in zip(brain.SUBJECTS, ends, strict=True)
    }
