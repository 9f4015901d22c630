"""Recordings and their transcripts: where they lie, how they become features, batches and augmented examples."""
