"""After training: take the best weights, evaluate, export, draw, report, and say where everything is."""

from __future__ import annotations

import logging
import sys

from mmzoo import run_folder, zoo
from mmzoo.checkpoints import files
from mmzoo.cli import console, dense_gallery, gallery, page, plots, results, scene_gallery, sources
from mmzoo.cli.results import Results
from mmzoo.learners.evaluate import evaluate
from mmzoo.learners.progress import wants_bar
from mmzoo.recipe import Built
from mmzoo.run_folder import RunFolder, Status

log = logging.getLogger(__name__)


def after_training(built: Built, folder: RunFolder, *, as_json: bool = False) -> Results:
    """Finish a run. All processes evaluate together; the first one writes."""
    built.trainer.strategy.barrier("best checkpoint")
    checkpoint = files.read_checkpoint(folder.best)
    sources.load_weights(built, sources.model_state(checkpoint), str(folder.best))
    found = measure(built, report_split(built), str(folder.best))
    if run_folder.rank() > 0:
        return found
    zoo.export(built.model, folder.export, built.learner.meta)
    results.save(folder.evaluation, found)
    run_folder.write_json(folder.path / "model.json", sources.describe(built))
    has_picture = gallery.draw(built, found.split, folder.plots / "retrieval.png")
    has_panels = dense_gallery.draw(built, found.split, folder.plots / "dense.png")
    has_scenes = scene_gallery.draw(built, found.split, folder.plots / "scenes.png")
    plots.draw_all(folder)
    folder.mark(Status.FINISHED, step=checkpoint["global_step"])
    page.write(folder)
    if as_json:
        console.dump({"run": str(folder.path), **found.to_dict()})
        return found
    console.say(results.text(found) + "\n")
    log.info("%s", results.text(found), extra={"quiet": True})
    if has_picture:
        console.note(f"picture: {folder.plots / 'retrieval.png'}")
    if has_panels:
        console.note(f"picture: {folder.plots / 'dense.png'}")
    if has_scenes:
        console.note(f"picture: {folder.plots / 'scenes.png'}")
    console.note(f"report:  {folder.report}")
    console.note(f"model:   {folder.export}")
    embed = f", mmzoo embed {folder.path} DATA -o out.npz" if built.model.embeds else ""
    console.note(f"next: mmzoo eval {folder.path}{embed}")
    return found


def measure(built: Built, split: str, source: str) -> Results:
    """Evaluate a split in the precision of training, with a line on a terminal that counts."""
    counter = _Counter(split)
    with built.trainer.precision_plugin.forward_context():
        found = evaluate(built.learner, built.datamodule, split, counter.show)
    counter.close()
    return results.from_evaluation(found, built.info.counts.get(split, counter.done), source)


def report_split(built: Built) -> str:
    """Return the split to report: test, where the data have one."""
    return "test" if built.info.counts.get("test") else "val"


class _Counter:
    """Says how many samples are done, on a terminal only."""

    def __init__(self, split: str) -> None:
        self.split, self.done, self.live = split, 0, wants_bar()

    def show(self, done: int) -> None:
        self.done = done
        if self.live:
            sys.stderr.write(f"\revaluating {self.split}: {done:,} samples")
            sys.stderr.flush()

    def close(self) -> None:
        if self.live and self.done:
            sys.stderr.write("\r\x1b[K")
