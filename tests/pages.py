"""Reads HTML as strictly as no browser does: what a page may not hold is a complaint."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img"}
PHRASING = {"a", "b", "code", "span", "time", "img"}
"""What may stand in a paragraph; anything else would end it."""
ONLY_PHRASING = {"p", "h1", "h2", "h3", "h4", "dt", "summary", "span", "a", "b", "code", "time"}
CHILDREN = {"ul": {"li"}, "ol": {"li"}, "dl": {"dt", "dd", "div"}, "tr": {"th", "td"}}
TAGS = {
    *("html head title style body main header section article nav div p h1 h2 h3 h4".split()),
    *("ul ol li dl dt dd details summary table thead tbody tr th td del ins".split()),
    *PHRASING,
    *VOID,
}
ATTRIBUTES = set(
    "charset http-equiv content name lang class id href dir datetime open scope role tabindex "
    "aria-label aria-labelledby src alt".split()
)


class Page(HTMLParser):
    """One page: its complaints, its text, and what it refers to.

    Attributes:
        complaints: What a page may not hold, or holds in the wrong place.
        texts: The texts of its body, one for each stretch between tags.
        ids: The ids of its elements.
        links: Where its links go.
        headings: The levels of its headings, in order.
        tags: How many elements there are of each tag.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.complaints: list[str] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[int] = []
        self.metas: dict[str, str] = {}
        self.style = ""
        self.tags: dict[str, int] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.complaints += [f"<{tag}> is not closed" for tag in self._open]
        self.complaints += [f"#{i} is there twice" for i in {*self.ids} if self.ids.count(i) > 1]
        self.complaints += [
            f"a link goes to {link}"
            for link in self.links
            if not (link.startswith("#") and link[1:] in self.ids)
        ]
        raw = re.search(r"&(?!(?:amp|lt|gt|quot|#x27);)", re.sub(r"<style>.*?</style>", "", text))
        if raw:
            self.complaints.append(f"a bare & at {raw.start()}")

    @property
    def text(self) -> str:
        """All that it says."""
        return "\n".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        parent = self._open[-1] if self._open else ""
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag not in TAGS:
            self.complaints.append(f"<{tag}> is no tag of ours")
        if parent in ONLY_PHRASING and tag not in PHRASING:
            self.complaints.append(f"<{tag}> in <{parent}>")
        if tag not in CHILDREN.get(parent, {tag}):
            self.complaints.append(f"<{tag}> in <{parent}>")
        given = {name: value or "" for name, value in attrs}
        if len(given) < len(attrs):
            self.complaints.append(f"<{tag}> has an attribute twice")
        self.complaints += [f"{name}= in <{tag}>" for name in given if name not in ATTRIBUTES]
        if "id" in given:
            self.ids.append(given["id"])
        if "href" in given:
            self.links.append(given["href"])
        if "src" in given and not given["src"].startswith("data:image/"):
            self.complaints.append(f"a picture from {given['src'][:40]}")
        if tag == "meta":
            self.metas[given.get("name") or given.get("http-equiv") or ""] = given.get(
                "content", ""
            )
        if re.fullmatch("h[1-4]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.complaints.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["style"]:
            self.style += data
        elif data.strip():
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.complaints.append(f"a comment: {data[:40]}")

    def handle_pi(self, data: str) -> None:
        self.complaints.append(f"an instruction: {data[:40]}")

    def unknown_decl(self, data: str) -> None:
        self.complaints.append(f"a declaration: {data[:40]}")
