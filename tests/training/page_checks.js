// What test_page.py asks of a page in the browser. Each returns what is wrong.
const checks = {
  // Text whose contrast to what lies behind it is below 4.5, as WCAG AA asks of small text.
  pale() {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = colour => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const behind = element => {
      for (let at = element; at; at = at.parentElement) {
        const found = rgba(getComputedStyle(at).backgroundColor);
        if (found[3] > 250) return found;
      }
      return [255, 255, 255];
    };
    const wrong = new Set();
    for (const element of document.querySelectorAll("body *")) {
      const hasText = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
      if (!hasText || element.closest("script, style, [hidden], button:disabled")) continue;
      const style = getComputedStyle(element), colour = element.closest("svg") ? style.fill : style.color;
      const [a, b] = [luminance(rgba(colour)), luminance(behind(element))].sort((x, y) => y - x);
      if ((a + 0.05) / (b + 0.05) < 4.5) wrong.add(`${element.tagName}.${element.getAttribute("class")}`);
    }
    return [...wrong];
  },
  // Controls, regions and pictures without a name.
  unnamed() {
    const named = one => one.labels?.length || one.alt || one.ariaLabel || one.getAttribute("aria-labelledby") || one.textContent.trim();
    const all = document.querySelectorAll("input, select, button, a, img, section, [role=region], [role=img]");
    return [...all].filter(one => !named(one)).map(one => one.outerHTML);
  },
  // Headings that skip a level.
  skipped() {
    const levels = [...document.querySelectorAll("h1, h2, h3")].map(one => +one.tagName[1]);
    return levels.filter((level, i) => i > 0 && level > levels[i - 1] + 1);
  },
};
