"""The service that decodes for phones: programs of a bundle in an engine, and the pages by which others ask."""
