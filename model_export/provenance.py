"""Which head a bundle was made from, which decides whether an export may replace it.

A bundle can be made again if its head came with the package or is the one being exported. Every other bundle may be the
only copy of somebody's work, so that only ``--force`` replaces it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from model_export.errors import HeadError
from model_export.head import TrainedHead
from model_export.quantize import QUANTIZER_REVISION
from service.errors import BundleError
from service.model.bundle import SCHEMA_VERSION, Manifest, read_manifest

# In ``Manifest.training``, because earlier versions refuse a manifest with a field that they do not know.
RECORD = "made_from"
# Bundles of the shipped head 0.3.0 without a record: digest of their facts and of the agreement, which an export copies
# only if head.json, weights and calibration ranges are those that it was measured on.
UNRECORDED = frozenset({"407f8d233f75d3ffa122d00da5ab994664a11633c3cc15a54aa7949eabb7ac70"})


def with_record(manifest: Manifest, head: TrainedHead) -> Manifest:
    """Return a new bundle's manifest with a record of its head.

    The record's ``seal`` is a digest of what the manifest says of the network. A bundle that was edited by hand, such
    as a copy with other labels, does not match it.
    """
    record = {
        "head_sha256": head.identity(),
        "quantizer": QUANTIZER_REVISION,
        "shipped": head.is_shipped(),
        "seal": _seal(manifest),
    }
    return manifest.model_copy(update={"training": {**manifest.training, RECORD: record}})


def can_be_made_again(manifest: Manifest, head: TrainedHead) -> bool:
    """Whether a bundle was made from ``head`` or from a head that shipped, with this version or an earlier one."""
    match manifest.training.get(RECORD):
        case {"head_sha256": identity, "shipped": shipped, "seal": seal}:
            return seal == _seal(manifest) and (shipped is True or identity == head.identity())
    agreement = {
        p: entry.agreement and entry.agreement.model_dump(exclude_none=True) for p, entry in manifest.precisions.items()
    }
    return _digest(_facts(manifest), agreement) in UNRECORDED


def check_made_from(bundle: Path, manifest: Manifest, head: TrainedHead) -> None:
    """Refuse a bundle that is not known to have been made from ``head``, by its facts, weights and calibration ranges.

    Raises:
        HeadError: It was made from another head, was edited, or does not say what it was made from.
    """
    match manifest.training.get(RECORD):
        case {"head_sha256": str(identity), "seal": str(seal)}:
            if identity != head.identity():
                raise HeadError(
                    f"{bundle} was made from another head than that in {head.path}, or before it changed; name the "
                    "bundle's head with --head, or export it again"
                )
            if seal != _seal(manifest):
                raise HeadError(
                    f"{bundle} was edited after it was exported; export it again from the head in {head.path}"
                )
            # Revision 1 was not recorded.
            if manifest.training[RECORD].get("quantizer", 1) != QUANTIZER_REVISION:
                raise HeadError(f"{bundle} was quantized in another way than this version does; export it again")
        case _:
            raise HeadError(
                f"{bundle} does not record which head it was made from; export it again from the head in {head.path}"
            )


def own_bundle_of_earlier_versions(output: Path, head: TrainedHead) -> Path | None:
    """Return the folder without the schema's number that earlier images served, if it holds somebody's own head."""
    earlier = output.parent / output.name.removesuffix(f"-{SCHEMA_VERSION}")
    try:
        own = earlier != output and not can_be_made_again(read_manifest(earlier), head)
    except BundleError:
        return None
    return earlier if own else None


def _seal(manifest: Manifest) -> str:
    return _digest(_facts(manifest), {p: entry.sha256 for p, entry in manifest.precisions.items()})


def _facts(manifest: Manifest) -> list[Any]:
    training = {key: value for key, value in manifest.training.items() if key not in (RECORD, "export_check")}
    return [manifest.name, manifest.version, manifest.variant, manifest.labels, training]


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
