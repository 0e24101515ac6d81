"""The census: public architectures that nobody tuned for, each in a process of its own, and a page made from the rows."""
