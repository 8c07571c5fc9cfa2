"""Recognises human actions in video clips: the online part, from the HTTP server to the sandboxed decoders."""

import os

# From 1.29 on, ONNX Runtime writes a device id and a store of events below ~/.cache and sends the events to its maker.
# It reads this variable when it is imported. Set here, the variable precedes every import by a module of this project,
# and child processes inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
