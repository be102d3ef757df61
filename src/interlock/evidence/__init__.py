"""What other verbs wrote, as one page for whoever decides on a purchase or a refusal of chips.

    certificates, parity, fleets, speeds, runs, plans ──reading──> [Source]
      [Source] ──one module for each kind──> sentences and tables, made of what is cited
      question ──assembly──> Evidence: sections, notes, sources ──page──> HTML, and the same as JSON

Nothing is measured here, and nothing is said that no source says: every figure is looked up in the
source's own text by its place (record.cite), so the page cannot differ from the file.
"""
