"""One HTML page that shows a result: scores, charts, ranking, pictures of cases, training curves, uncertainty.

`page` gathers and writes it; `tables` and `charts` shape the numbers; `overlays` draws cases; `training` reads what
nnU-Net left beside a model. `page.html.jinja`, `page.css` and `page.js` are how it looks and behaves.
"""
