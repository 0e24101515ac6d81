"""What ``python -m shrinknets_fast train`` does: data, models, the loop, and the files it leaves."""
