"""draftmill: offline batch LLM inference for a fleet of Macs."""

__version__ = "0.1.0"
