"""Trains the network, and exports it as the bundle that the service runs."""

import service  # noqa: F401 - turns off ONNX Runtime's telemetry before a module of this package imports it
