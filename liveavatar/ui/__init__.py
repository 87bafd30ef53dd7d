"""The live server: a page, a WebSocket endpoint, and what stands between visitors and the session API.

It is one more user of `liveavatar.load(…).session(…)`; nothing below it knows that it exists.
"""
