"""Example answers for the OpenAPI document: complete in structure, with shortened lists."""

PREDICTION = {
    "model": {
        "name": "limelight-ucf13",
        "version": "0.1.0",
        "variant": "attention",
        "precision": "int8",
        "provider": "CPUExecutionProvider",
    },
    "clip": {
        "container": "avi",
        "codec": "mpeg4",
        "width": 320,
        "height": 240,
        "coded_width": 320,
        "coded_height": 240,
        "frames": 164,
        "duration_s": 6.56,
        "rotation": 0,
        "damaged_frames": 0,
    },
    "predictions": [{"label": "Basketball", "index": 0, "probability": 0.98}],
    "probabilities": [0.98, 0.02],
    "attention": {"grid": [7, 7], "maps": [[[0.02, 0.03]]]},
    "frames": [{"index": 2, "time_s": 0.082}],
    "timings_ms": {"receive": 1.0, "decode": 25.1, "queue": 0.2, "inference": 1190.0, "total": 1217.0},
}

MANIFEST = {
    "schema": 1,
    "name": "limelight-ucf13",
    "version": "0.1.0",
    "variant": "attention",
    "labels": ["Basketball", "Biking"],
    "frame_count": 40,
    "image_size": 224,
    "sampling": "segment-center",
    "resize": "stretch-bilinear",
    "precisions": {"fp32": {"file": "model.fp32.onnx", "sha256": "0" * 64, "agreement": None}},
    "training": {"data": "UCF-101"},
    "built_from": None,
}
