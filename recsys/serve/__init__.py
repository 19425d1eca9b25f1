"""The online door: the same `Recommender` as batch behind HTTP, a request being a batch of one.

`rank` answers a request from a bundle and knows nothing of HTTP; `app` is the HTTP around it.
"""
