"""The page of a diagnosis: `diagnosis.html`, one file that opens by itself.

`data` takes what it shows out of the diagnosis, `captions` says on what that was measured, `charts` draws it,
`sections` puts it in order, and `write` writes it, made of what `sae_outliers.pages` has. Nothing else imports it
before a page is made, for Altair takes a second to load.
"""
