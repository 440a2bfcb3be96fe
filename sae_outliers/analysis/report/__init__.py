"""The page that an aggregation leaves beside its tables and figures: `report.html`, one file that opens by itself.

`data` takes what it shows out of the inputs, `captions` says on what that was measured, `charts` draws it, `sections`
puts it in order, and `page` writes it, made of what `sae_outliers.pages` has.
"""
