"""A made world of clips: moving shapes whose every fact is known, so that answers can be marked without a judge.

`scene` draws what happens, `render` draws how it looks at a time, `texts` says it in words and asks about it,
`clips` writes it as H.264 files with their questions. All of it is a pure function of (level, seed, index).
"""
