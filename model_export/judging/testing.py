"""The command ``test``: how well a bundle or a head names the clips of a labelled folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_export.data.datasets import LabelledClip, matching
from model_export.data.dealing import linked
from model_export.data.examples import npy_bytes
from model_export.data.features import OFFLINE_LIMITS
from model_export.data.gathering import Selection, gather_features
from model_export.errors import DatasetError, EvaluationError, HeadError
from model_export.fitting import predict_probabilities
from model_export.head import TrainedHead, short_digest
from model_export.judging.results import Results
from model_export.judging.tested import FILES, Tested, write_tested
from model_export.machine import has_vnni
from model_export.network.arrays import Probabilities
from model_export.provenance import check_made_from
from model_export.reporter import SILENT, Reporter
from model_export.revisions import CURRENT
from model_export.storing import check_targets, store
from model_export.verify import OnnxNetwork, device_of
from model_export.weights import fetch_weights
from service.errors import ClipError
from service.model.bundle import Manifest, Precision, file_sha256, load_bundle
from service.video.decoder import decode_clip


def served_precision(manifest: Manifest, *, vnni: bool) -> Precision:
    """Return the precision that the service chooses by itself on a CPU."""
    return "int8" if vnni and "int8" in manifest.precisions and not manifest.int8_shortfall else "fp32"


def judge_bundle(
    bundle: Path,
    selection: Selection,
    output: Path,
    *,
    precision: Precision | None = None,
    head: TrainedHead | None = None,
    command: str = "",
    reporter: Reporter = SILENT,
) -> Tested:
    """Test a bundle in ONNX Runtime on the CPU, and write the report.

    Args:
        bundle: Folder of the bundle.
        selection: Which clips.
        output: Folder of the report. Answers are kept in it by the content of clips, so that an interrupted test
            continues where it stopped.
        precision: Which precision; default: the one that the service would use on this CPU.
        head: Head that the bundle was made from, which knows the clips that it was trained on.
        command: The command line, for the report.
        reporter: Receives progress.

    Raises:
        LimelightModelError: The head is not the bundle's, the clips cannot be used, or answers are not finite.
        BundleError: The bundle cannot be used, or has no such precision.
        OSError: A file cannot be read or written.
    """
    check_targets(output, FILES)
    loaded = load_bundle(bundle)
    manifest = loaded.manifest
    if head:
        check_made_from(bundle, manifest, head)
    chosen = precision or served_precision(manifest, vnni=has_vnni())
    why = "" if precision else ", which the service would use on this CPU"
    reporter.say(f"testing {chosen}{why}")
    selection.tell_renamed(reporter)
    known = _known(selection, manifest.labels, reporter)
    network = OnnxNetwork(loaded.read_model(chosen))
    made_by = [manifest.precisions[chosen].sha256, CURRENT.sampling, CURRENT.resize, device_of(chosen)]
    kept = output / "answers"
    contents: dict[LabelledClip, str] = {}
    answers: list[Probabilities] = []
    undecodable: dict[LabelledClip, str] = {}
    with reporter.track(known.selection.clips(), "testing") as clips:
        for clip in clips:
            content = file_sha256(clip.path)
            name = hashlib.sha256(json.dumps([*made_by, content]).encode()).hexdigest()
            try:
                answers.append(_answer(network, clip.path, kept / f"{name}.npy"))
                contents[clip] = content
            except ClipError as error:
                undecodable[clip] = str(error)
    videos = linked((clip.group, content) for clip, content in contents.items())
    first = {videos[clip.group]: clip.group for clip in reversed(contents)}
    groups = [first[videos[clip.group]] for clip in contents]
    model = f"{manifest.name} {manifest.version}, {chosen}, {device_of(chosen)}"
    reasons = {**known.left_out, **{clip.name: reason for clip, reason in undecodable.items()}}
    reporter.table(("left out", "reason"), reasons.items())
    found = known.tested(model, contents, groups, answers, undecodable, head)
    write_tested(output, found, command, reporter)
    return found


def judge_head(
    head: TrainedHead,
    selection: Selection,
    output: Path,
    *,
    features: Path,
    weights: Path | None = None,
    command: str = "",
    reporter: Reporter = SILENT,
) -> Tested:
    """Test a head in Keras on cached features, and write the report.

    Args:
        head: The head.
        selection: Which clips.
        output: Folder of the report.
        features: Folder of cached features; those that are missing are computed.
        weights: VGG19's weights file; found or downloaded if not given.
        command: The command line, for the report.
        reporter: Receives progress.

    Raises:
        LimelightModelError: The head, clips, features or weights cannot be used, or answers are not finite.
        OSError: A file cannot be read or written.
    """
    check_targets(output, FILES)
    if warning := head.check_revisions():
        reporter.say(warning)
    known = _known(selection, head.facts.labels, reporter)
    vgg19 = fetch_weights(weights, reporter=reporter)
    if file_sha256(vgg19) != head.facts.encoder_sha256:
        raise HeadError(
            f"{head.path} was trained on features of other VGG19 weights than {vgg19}; name their file with --weights"
        )
    data = gather_features(known.selection, vgg19, features, reporter=reporter)
    model = head.build()
    batches = [data.examples[i : i + 16] for i in range(0, len(data.examples), 16)]
    with reporter.track(batches, "testing batches of 16") as tracked:
        answers = [answer for batch in tracked for answer in predict_probabilities(model, batch)]
    contents = {clip: example.content for clip, example in zip(data.decodable, data.examples, strict=True)}
    groups = [example.group for example in data.examples]
    title = f"{head.facts.name} {head.facts.version}, Keras, features by {data.engine} in {data.dtype}"
    found = known.tested(title, contents, groups, answers, data.undecodable, head)
    write_tested(output, found, command, reporter)
    return found


@dataclass(frozen=True, slots=True)
class _Known:
    """The classes of a folder that a model knows.

    Attributes:
        selection: Their clips.
        labels: Names of the model's classes, in index order.
        unknown: The folder's other classes.
        left_out: What may have been meant as a clip of the folder, with the reason (see ``find_left_out``).
    """

    selection: Selection
    labels: tuple[str, ...]
    unknown: tuple[str, ...]
    left_out: Mapping[str, str]

    def tested(
        self,
        model: str,
        contents: Mapping[LabelledClip, str],
        groups: Sequence[str],
        answers: Sequence[Probabilities],
        undecodable: Mapping[LabelledClip, str],
        head: TrainedHead | None,
    ) -> Tested:
        """Put together what was found: the content, group and answer of each clip in one order."""
        if not contents:
            raise DatasetError(f"{self.selection.videos}: none of its clips can be decoded; replace them")
        probabilities = np.stack(answers)
        for clip, answer in zip(contents, probabilities, strict=True):
            if not np.isfinite(answer).all():
                raise EvaluationError(
                    f"{model} answers {clip.name} with values that are not finite; test another --precision, or train "
                    "the head again"
                )
        trained_on = head.trained_clips() if head else None
        clips = list(contents)
        known = matching({clip.label for clip in clips}, self.labels)
        results = Results(
            contender=model,
            recipe=model,
            labels=self.labels,
            names=tuple(clip.name for clip in clips),
            groups=tuple(groups),
            truth=np.array([self.labels.index(known[clip.label]) for clip in clips]),
            probabilities=probabilities,
            folds=np.zeros(len(clips), np.int64),
            leaked=np.array([short_digest(content) in (trained_on or ()) for content in contents.values()]),
        )
        tested = set(known.values())
        return Tested(
            results,
            model,
            self.selection.videos.name,
            {clip.name: reason for clip, reason in undecodable.items()},
            self.left_out,
            self.unknown,
            tuple(label for label in self.labels if label not in tested),
            trained_on is not None,
        )


def _known(selection: Selection, labels: Sequence[str], reporter: Reporter) -> _Known:
    """Choose the classes that the model knows, in any spelling, and report the others.

    Raises:
        DatasetError: It knows none.
    """
    found = selection.labels()
    known = matching(found, labels)
    unknown = [name for name in found if name not in known]
    if not known:
        raise DatasetError(
            f"{selection.videos} has none of the model's classes, {', '.join(labels)}, only {', '.join(unknown)}; name "
            "its folders as the model names its classes"
        )
    if unknown:
        reporter.say(f"left out, because the model does not know these classes: {', '.join(unknown)}")
    if absent := [label for label in labels if label not in known.values()]:
        reporter.say(f"not tested, because these classes have no folder: {', '.join(absent)}")
    for name, label in known.items():
        if name != label:
            reporter.say(f"the folder of {name!a} is taken for the model's class {label!a}")
    chosen = Selection(selection.videos, list(known), selection.count)
    return _Known(chosen, tuple(labels), tuple(unknown), selection.left_out())


def _answer(network: OnnxNetwork, clip: Path, file: Path) -> Probabilities:
    """Return a network's answer for a clip from ``file``; if that is missing or damaged, compute and keep it."""
    try:
        kept: Probabilities = np.load(file)
        return kept
    except (FileNotFoundError, ValueError, EOFError):
        frames = decode_clip(clip, OFFLINE_LIMITS).frames
    answer = np.asarray(network(frames[np.newaxis]).probabilities[0], np.float64)
    store(file, npy_bytes(answer))
    return answer
