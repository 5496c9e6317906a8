"""Pages of settings for tests."""

from ui.core.settings import Settings
from ui.form.form_page import FormPage


class Pages:
    """Shows pages, and holds them: a page that nobody holds is gone."""

    def __init__(self, qtbot, document):
        self.qtbot, self.document, self.held = qtbot, document, []

    def show(self, section, of=None):
        """The page of a section, at about the size it gets in the smallest window."""
        page = FormPage(of or self.document, section, Settings())
        self.qtbot.addWidget(page)
        self.held.append(page)
        page.resize(900, 660)
        page.show()
        return page
