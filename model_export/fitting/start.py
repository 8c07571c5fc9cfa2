"""Beginning a training with the weights of another head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt

from model_export.data.datasets import matching
from model_export.errors import TrainingError
from model_export.head import TrainedHead
from model_export.network.spec import HeadSpec

Weights = list[npt.NDArray[np.float32]]
"""The weights of one member, in Keras' order."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the members of a head begin with.

    Attributes:
        origin: ``name``, ``version`` and ``identity`` of the other head.
        members: The weights of its members.
        classes: For each class, its index in the other head; ``None`` for a class that it does not know.
    """

    origin: Mapping[str, str]
    members: tuple[Weights, ...]
    classes: tuple[int | None, ...]

    @classmethod
    def of(cls, head: TrainedHead, spec: HeadSpec, encoder_sha256: str, labels: Sequence[str]) -> "Start":
        """Read another head's weights.

        Args:
            head: The other head.
            spec: The network to train; its ``channels`` follow from the encoder.
            encoder_sha256: SHA-256 of the VGG19 weights that the features are from.
            labels: Names of the classes to train, in index order.

        Raises:
            HeadError: The other head's weights cannot be read.
            TrainingError: It is another network, or was trained on features of other VGG19 weights.
        """
        facts = head.facts
        others = {name: getattr(facts, name) for name in HeadSpec.model_fields if name != "channels"}
        if other := {name: found for name, found in others.items() if found != getattr(spec, name)}:
            theirs = ", ".join(f"{name} {found}" for name, found in other.items())
            ours = ", ".join(f"{name} {getattr(spec, name)}" for name in other)
            raise TrainingError(
                f"the head in {head.path} has {theirs}, and this training has {ours}; choose the same with the options "
                "of the network, or another head for --from"
            )
        if facts.encoder_sha256 != encoder_sha256:
            raise TrainingError(
                f"the head in {head.path} was trained on features of other VGG19 weights; name their file with "
                "--weights, or choose another head for --from"
            )
        weights = head.build().get_weights()
        each = len(weights) // spec.members
        members = tuple(weights[i * each : (i + 1) * each] for i in range(spec.members))
        known = {name: facts.labels.index(label) for name, label in matching(labels, facts.labels).items()}
        origin = {"name": facts.name, "version": facts.version, "identity": head.identity()}
        return cls(origin, members, tuple(map(known.get, labels)))

    def weights(self, member: int, fresh: keras.Model) -> Weights:
        """Return what a member begins with: the other head's weights, and those of ``fresh`` for classes that are new.

        Args:
            member: Index of the member.
            fresh: A network of one member for the classes to train, with random weights.
        """
        classifier = {variable.path for variable in fresh.get_layer("probabilities").weights}
        new = [i for i, known in enumerate(self.classes) if known is not None]
        old = [known for known in self.classes if known is not None]
        found = []
        for variable, theirs in zip(fresh.weights, self.members[member], strict=True):
            values = theirs
            if variable.path in classifier:  # its last axis counts classes
                values = np.array(variable)
                values[..., new] = theirs[..., old]
            found.append(values)
        return found
