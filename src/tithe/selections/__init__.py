"""Pure selections: from scores, tokens and a budget to what is kept."""
