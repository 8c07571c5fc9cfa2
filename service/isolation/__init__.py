"""Decodes each clip in a sandboxed process of its own, so that a hostile clip cannot harm the service.

``docs/sandbox.md`` describes the layers and what they protect against.
"""
