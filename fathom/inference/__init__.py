"""A model in use: opened from any form, asked, measured, inspected and converted; what ``fathom.load`` returns."""
