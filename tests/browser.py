"""A headless browser for tests of pages, and what it finds wrong with them."""

import shutil

import pytest

ON_PHONE, ON_DESK = 390, 1280


@pytest.fixture(scope="session")
def browser():
    """A headless chromium that reaches no network and notes what it asks for and complains about."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser: requirements-dev.txt")
    programs = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program, service = next(filter(None, programs), None), shutil.which("chromedriver")
    if program is None or service is None:
        pytest.skip("no chromium with chromedriver on this machine: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield driver
    driver.quit()


def show(browser, path, width, theme="light", media=""):
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())


TOO_WIDE = """
return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg'))
  .filter(e => { const r = e.getBoundingClientRect(); return r.right > innerWidth + 1 || r.left < -1 })
  .map(e => e.tagName + ' ' + e.className)"""
TEXTS_IN_THE_WAY = """
const faults = [], box = e => e.getBoundingClientRect();
for (const svg of document.querySelectorAll('svg')) {
  const frame = box(svg), texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim());
  for (const t of texts) {
    const r = box(t);
    const inside = r.left > frame.left - 6 && r.right < Math.min(innerWidth, frame.right + 6)
      && r.top > frame.top - 6 && r.bottom < frame.bottom + 6;
    if (!inside) faults.push('cut: ' + t.textContent);
    if (r.height < 5.5) faults.push('small: ' + t.textContent);
    for (const other of texts) {
      if (other === t) break;
      const o = box(other);
      const w = Math.min(r.right, o.right) - Math.max(r.left, o.left);
      const h = Math.min(r.bottom, o.bottom) - Math.max(r.top, o.top);
      if (w > 2 && h > 0.3 * Math.min(r.height, o.height)) faults.push(other.textContent + ' on ' + t.textContent);
    }
  }
}
return faults"""
