"""synthfactory: labelled synthetic H&E tile sets from one YAML spec."""
