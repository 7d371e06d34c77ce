"""Streams and events."""

from npu_fused_graph.host.capture.streams import Event, ExternalEvent, ExternalStream, Stream

__all__ = ["Event", "ExternalEvent", "ExternalStream", "Stream"]
