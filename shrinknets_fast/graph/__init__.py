"""The network as a graph of features: traced once, asked at each collection which features may leave.

``trace`` turns a model into ATen graphs, ``rules`` relate the axes of each op, ``network`` joins them into features, ``plan``
decides what goes, ``apply`` removes it.
"""
