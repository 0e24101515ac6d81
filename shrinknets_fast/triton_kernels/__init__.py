"""Device code in Triton: one file per op, under the op's name. Imported when a kernel is first launched, never before."""
