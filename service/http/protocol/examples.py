"""Example messages of the Open Inference Protocol for the OpenAPI document, and the schemas of inference messages.

The examples shorten the tensors' numbers. The schemas describe messages as they are sent, whereas the models in
``schemas`` describe what remains of them after the numbers have been cut out.
"""

from typing import Any

SERVER = {
    "name": "limelight",
    "version": "0.1.0",
    "extensions": ["binary_tensor_data", "model_configuration", "statistics"],
}
MODELS = {"models": ["limelight-ucf13"]}
INDEX = [{"name": "limelight-ucf13", "version": "0.1.0", "state": "READY", "reason": ""}]
MODEL = {
    "name": "limelight-ucf13",
    "versions": ["0.1.0"],
    "platform": "onnxruntime_onnx",
    "inputs": [{"name": "frames", "datatype": "UINT8", "shape": [-1, 40, 224, 224, 3]}],
    "outputs": [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 13]},
        {"name": "attention", "datatype": "FP32", "shape": [-1, 40, 7, 7]},
    ],
}
READY = {"name": "limelight-ucf13", "ready": True}
CONFIG = {
    "name": "limelight-ucf13",
    "platform": "onnxruntime_onnx",
    "max_batch_size": 17,
    "input": [{"name": "frames", "data_type": "TYPE_UINT8", "dims": [40, 224, 224, 3]}],
    "output": [{"name": "probabilities", "data_type": "TYPE_FP32", "dims": [13]}],
}
_NONE = {"count": 0, "ns": 0}
STATISTICS = {
    "model_stats": [
        {
            "name": "limelight-ucf13",
            "version": "0.1.0",
            "last_inference": 1798000000000,
            "inference_count": 3,
            "execution_count": 3,
            "inference_stats": {
                "success": {"count": 3, "ns": 3651000000},
                "fail": {"count": 1, "ns": 2000000},
                "queue": {"count": 3, "ns": 600000},
                "compute_input": {"count": 3, "ns": 75300000},
                "compute_infer": {"count": 3, "ns": 3570000000},
                "compute_output": _NONE,
                "cache_hit": _NONE,
                "cache_miss": _NONE,
            },
            "batch_stats": [],
        }
    ]
}
REQUEST = {
    "id": "clip-1",
    "inputs": [{"name": "frames", "shape": [1, 40, 224, 224, 3], "datatype": "UINT8", "data": [0, 12, 255]}],
    "outputs": [{"name": "probabilities"}],
}
RESPONSE = {
    "model_name": "limelight-ucf13",
    "model_version": "0.1.0",
    "id": "clip-1",
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.98, 0.02]}],
}


def _object(required: dict[str, Any], optional: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": required | optional}


def _array(items: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


_STRING: dict[str, Any] = {"type": "string"}
_PARAMETERS: dict[str, Any] = {"parameters": {"type": "object"}}
_NULLABLE_PARAMETERS: dict[str, Any] = {"parameters": {"type": ["object", "null"]}}
_SHAPE = _array({"type": "integer", "minimum": 1}, minItems=5, maxItems=5)
_NUMBERS: dict[str, Any] = {
    "type": ["array", "null"],
    "description": "Integers from 0 to 255, flat or nested like the shape.",
}

REQUEST_SCHEMA = _object(
    {
        "inputs": _array(
            _object(
                {"name": {"const": "frames"}, "shape": _SHAPE, "datatype": {"const": "UINT8"}},
                {"data": _NUMBERS, **_NULLABLE_PARAMETERS},
            ),
            minItems=1,
            maxItems=1,
        )
    },
    {
        "id": {"type": ["string", "null"]},
        "outputs": {
            "type": ["array", "null"],
            "items": _object({"name": {"enum": ["probabilities", "attention"]}}, _NULLABLE_PARAMETERS),
        },
        **_NULLABLE_PARAMETERS,
    },
)
RESPONSE_SCHEMA = _object(
    {
        "model_name": _STRING,
        "model_version": _STRING,
        "outputs": _array(
            _object(
                {"name": _STRING, "shape": _array({"type": "integer"}), "datatype": {"const": "FP32"}},
                {"data": _array({"type": "number"}), **_PARAMETERS},
            )
        ),
    },
    {"id": _STRING},
)
