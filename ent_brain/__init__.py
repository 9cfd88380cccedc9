"""Emotion Neural Transducers for SpeechBrain: what was said, how it was felt, and when."""
