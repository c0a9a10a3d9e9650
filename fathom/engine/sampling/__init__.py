"""Drawing tokens: penalties, filters, seeded uniform numbers, and which drafted tokens are accepted."""
