"""What is asked of every page: that it can be read, and fits a telephone and a desk."""

WIDTHS = (375, 1280)


def readable(page, *places):
    """Assert that the text of these places stands out from what is behind it by WCAG's ratio for ordinary text, 4.5."""
    for place in places:
        found = page.locator(place).first.evaluate(_CONTRAST)
        assert found >= 4.5, f"{place} has a contrast of {found:.2f}"


def fits(page):
    """Assert that nothing is wider than the window."""
    wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window, f"the page is {wide} px wide in a window of {window}"


_CONTRAST = """element => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = [255, 255, 255];
  for (let one = element; one; one = one.parentElement) {
    const colour = parts(getComputedStyle(one).backgroundColor);
    if (colour.length < 4 || colour[3] > 0.99) { behind = colour; break; }
  }
  const [a, b] = [light(parts(getComputedStyle(element).color)), light(behind)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""
