"""Doors between transformers' attention layouts and ``AttentionWeights``: one per layout."""
