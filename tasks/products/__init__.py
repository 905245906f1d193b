"""What else can be made of a mask: polygons, a table, a preview, DICOM-SEG, and a note of what made it."""
