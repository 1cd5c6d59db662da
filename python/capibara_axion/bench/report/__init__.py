# SPDX-License-Identifier: Apache-2.0
"""One page of all measurements in a folder: `capibara-axion bench report`.

`sources` reads the files, the modules of `sections` make figures of them, `style` draws those for
light and dark, wide and narrow, and `page` puts everything into one HTML file.
"""
