"""Serving: many requests on one model, each answered as it would be alone.

`engine.py` steps rows, `jobs.py` is what it steps, `requests.py` makes jobs of what clients ask, `wire.py` is the shape
of questions and answers, `api.py` the routes, `guard.py` what stands before them, `metrics.py` what can be watched,
`presets.py` the three ways of decoding that a server offers by name, `page.py` the page at `/`.
"""
