"""The HTTP side of the service: listening, connections, middleware, routes, and the page."""

import os

# FastAPI loads the propagators that this variable names, and cannot be imported if one is not installed. Clusters set
# the variable for all programs, often with b3 in it. ``TrustedProxies`` does not need it to read ``traceparent``.
os.environ.pop("OTEL_PROPAGATORS", None)
