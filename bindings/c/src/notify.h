/* State messages to systemd, if it started the program (NOTIFY_SOCKET, see sd_notify(3)). */
#ifndef APACHEWS_NOTIFY_H
#define APACHEWS_NOTIFY_H

void notify_ready(const char *path);
void notify_stopping(void);

#endif
