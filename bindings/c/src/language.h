/* The preferred language of a browser.  A pure function; source: RFC 9110 12.5.4 and 12.4.2. */
#ifndef APACHEWS_LANGUAGE_H
#define APACHEWS_LANGUAGE_H

/* Return the language tag with the greatest weight, the first of equals, unchanged; the caller
 * frees it.  NULL: the header has no language (*, weight 0 and malformed items are ignored), or
 * memory is exhausted. */
char *preferred_language(const char *accept_language);

#endif
