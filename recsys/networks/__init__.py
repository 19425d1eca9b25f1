"""What neural sources and rerankers share: attention, training by Lightning, histories in chunks, items as vectors."""
