/* Which language a browser prefers.  A pure function; source: RFC 9110 12.5.4 and 12.4.2. */
#ifndef APACHEWS_LANGUAGE_H
#define APACHEWS_LANGUAGE_H

/* Return the language tag with the greatest weight, the first of equals, as the browser wrote
 * it; the caller frees it.  NULL where it names none that it wants: *, weight 0 and malformed
 * items do not count; or for no memory. */
char *preferred_language(const char *accept_language);

#endif
