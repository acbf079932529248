"""What local shards hold where nothing beside them tells: read from their samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mmzoo.batch import NumericKind
from mmzoo.datamodules.captions import MODALITY, CaptionsConfig, EvaluateOn, evaluated
from mmzoo.datamodules.numbers import CORNERS, Numbers, NumbersConfig, NumericLabel, describe
from mmzoo.datamodules.records import Record, Vocabulary
from mmzoo.datamodules.shard_index import ShardRecords
from mmzoo.datamodules.shard_notes import Notes
from mmzoo.modalities.base import Preprocess


def told(notes: Notes, labels: Mapping[str, Sequence[str]], numbers: Mapping[str, NumbersConfig]) -> Notes:
    """Return what options and notes say of labels; options win. Labels of numbers that the options name are
    called by their columns, else by the label."""
    named = {t: _named(t, config, notes) for t, config in numbers.items()}
    own = {t: tuple(map(str, names)) for t, names in labels.items()} or notes.labels
    return Notes(labels=own, numbers={**notes.numbers, **named}, own_ids=notes.own_ids)


def labels_of(parts: Iterable[ShardRecords], numbers: Mapping[str, NumbersConfig], where: str) -> Notes:
    """Read the labels of all samples: class names, and what each label of numbers is."""
    seen = [Record(r.id, labels=r.labels) for part in parts for r in part]
    found: dict[str, NumericLabel] = {}
    for target in dict.fromkeys(t for r in seen for t, v in r.labels.items() if isinstance(v, Numbers)):
        rows = ((r.id, r.labels.get(target)) for r in seen)
        given = ((place, label) for place, label in rows if isinstance(label, Numbers))
        found[target] = describe(target, numbers.get(target) or NumbersConfig(), given, where)
    return Notes(labels=Vocabulary.of(seen).labels, numbers=found)


def survey(parts: Iterable[ShardRecords], captions: EvaluateOn) -> Notes:
    """Look for modalities that are in the json: at the first sample of each shard; and where one of these has
    several entries of something, or phrasings are to be shown side by side, for the most in all samples."""
    parts = list(parts)
    firsts = [record for part in parts for record in part.firsts()]
    modalities = tuple(dict.fromkeys(m for record in firsts for m in record.modalities))
    every = captions is EvaluateOn.ALL or any(record.several for record in firsts)
    several: dict[str, int] = {}
    for record in (r for part in parts for r in part) if every else ():
        shown = evaluated([record], CaptionsConfig(evaluate=captions))[0]
        for modality, entries in shown.several.items():
            several[modality] = max(several.get(modality, 0), len(entries))
    return Notes(modalities=modalities, several=several)


def entries_of(notes: Notes, captions: EvaluateOn, preprocesses: Mapping[str, Preprocess]) -> dict[str, int]:
    """Return the most entries that a sample has side by side of each modality that the model reads."""
    counts, phrasings = dict(notes.several), notes.phrasings.get(MODALITY, 0)
    if captions is EvaluateOn.ALL and phrasings > 1:
        counts[MODALITY] = max(counts.get(MODALITY, 0), phrasings)
    return {m: n for m, n in counts.items() if m in preprocesses or not preprocesses}


def _named(target: str, config: NumbersConfig, notes: Notes) -> NumericLabel:
    if config.kind is NumericKind.BOXES:
        return NumericLabel(config, CORNERS)
    known = notes.numbers[target].names if target in notes.numbers else (target,)
    return NumericLabel(config, tuple(config.columns) or known)
