"""Turns a video clip's bytes into the frames that the network needs, without HTTP, settings or processes."""
