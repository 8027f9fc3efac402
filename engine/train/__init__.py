"""Training of DFlash drafts: prompts, the target's own responses, block training, measuring, export."""
